"""One module per page; each lays out its components and wires their events."""
