"""Train a CTR backbone on the features of the store and export what serving loads."""
