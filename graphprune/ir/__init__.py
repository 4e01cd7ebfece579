"""The network as it is read: values, observations, sizes, files."""
