"""A server on which a model is used and taught: pages, an HTTP interface, and the served model."""
