"""Facts about this computer: processor, GPU driver, installed packages, memory."""
