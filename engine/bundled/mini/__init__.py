"""Training, checking and exporting `model1-mini`, the model bundled with MODEL1 Explorer. See ../train.py."""
