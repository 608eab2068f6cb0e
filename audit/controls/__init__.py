"""The checks that can fail an audit."""
