"""Rules: what each operator says about its spaces, one line per operator."""
