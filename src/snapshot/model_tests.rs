//! Random sequences of changes against a model.
