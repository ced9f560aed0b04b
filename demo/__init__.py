"""The demonstration: three tenants create, train and use their own models on BBC news text."""
