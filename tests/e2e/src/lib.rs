//! End-to-end tests against a real `dormouse serve`; everything is in `tests/`.
