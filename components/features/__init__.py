"""From raw events to training data: simulated transactions, features as of each row's moment, parts to train and judge on."""
