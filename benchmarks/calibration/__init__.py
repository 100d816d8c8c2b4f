"""Parts of bench_calibration."""
