"""Unlearning methods, one per file. Formulas in each docstring; L_f and L_r are mean NLLs on forget and retain."""
