"""What a model is: one decoder, its configuration as data, and where named models come from."""
