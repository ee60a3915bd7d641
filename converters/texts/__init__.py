"""Text for recipes where there is none: sampled from the model itself, and made so that answers are looked up."""
