"""A run that goes on with later data: whose rows are whose, what is carried over and what is not."""
