"""Who may do what: principals from tokens, grants by channel pattern and verb, quotas, the audit log."""
