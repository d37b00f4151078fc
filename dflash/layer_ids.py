"""Which of a target's layers a draft reads, where nobody says otherwise."""

from dflash.errors import UserError


def default_layer_ids(num_layers: int, num_features: int) -> list[int]:
    """Evenly spread 0-based decoder layers, as the public DFlash checkpoints choose them.

    One feature takes the middle layer; several run from layer 1 to layer L-3.

    Raises:
        UserError: the target has too few layers.
    """
    if num_features == 1:
        return [num_layers // 2]
    if num_layers < num_features + 3:
        raise UserError(
            f"A target of {num_layers} layers is too shallow to spread {num_features} features over it: "
            "give the layer ids yourself or ask for fewer."
        )
    return [round(1 + i * (num_layers - 4) / (num_features - 1)) for i in range(num_features)]
