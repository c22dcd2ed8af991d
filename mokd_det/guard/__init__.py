"""Steps that can be repeated, taken back and refused: nothing that is NaN or infinite reaches the parameters."""
