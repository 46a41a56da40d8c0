"""What is done to whole datasets: verified, exported, indexed for DALI, warmed."""
