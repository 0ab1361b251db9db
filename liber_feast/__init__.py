"""LIBER (lifelong user behavior modeling based on large language models) as a plugin of the feature store Feast."""
