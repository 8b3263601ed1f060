"""Each paper's experiments as plain functions: our numbers beside the paper's, and what differs."""
