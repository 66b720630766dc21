"""Who may call, and how much: credentials, tenants, and what each of them uses."""
