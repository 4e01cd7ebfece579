"""What a network computes on calibration data: samples, linear maps and the moments of what they read."""
