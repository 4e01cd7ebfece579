"""The command line: ``main`` is the frame, one module per verb, ``options`` what the verbs share."""
