"""The command line, `grass-rs` or `python -m grass_rs`."""
