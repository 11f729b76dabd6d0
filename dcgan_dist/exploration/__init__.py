"""The paper's figures: what a trained generator and discriminator have learned, a file for each."""
