"""Recording and alerting rules: `rules.py` is their source, `rules.yaml` what it makes."""
