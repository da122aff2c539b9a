"""From a company's raw conversations to training rows."""
