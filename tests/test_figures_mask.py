"""The mask figures draw the states they are given, and say the words they are given."""

from workbench.figures.mask import mask_cells, mask_tiles


def test_tiles_keep_their_states_and_say_what_they_are():
    heatmap = mask_tiles([[0, 1, 2], [2, 0, 1]], tile=128, context_length=200).data[0]
    assert [list(row) for row in heatmap.z] == [[0, 1, 2], [2, 0, 1]]
    assert "slots 128–255, keys 0–127" in heatmap.customdata[1][0]
    assert heatmap.customdata[1][0].endswith("full: no mask needed")


def test_cells_show_visibility_and_the_reason_in_words():
    figure = mask_cells([[True, False]], [["because it lies before", "another block"]], ["slot 0"], ["a", "b"], 1)
    heatmap = figure.data[0]
    assert [list(row) for row in heatmap.z] == [[1, 0]]
    assert heatmap.customdata[0][1] == "another block"
    assert list(figure.layout.xaxis.ticktext) == ["a", "b"]


def test_token_texts_cannot_become_markup_in_a_figure():
    figure = mask_cells([[True]], [["sees <b>bold</b>"]], ["slot 0"], ["<a href='x'>"], 1)
    assert "<a" not in figure.layout.xaxis.ticktext[0]
    assert "<b>" not in figure.data[0].customdata[0][0]
