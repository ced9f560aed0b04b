"""Storage owns every durable byte: tenants and keys, vPLM records, versions, datasets, job records.

It takes bytes only as streams with a declared size and digest, checks both on the way in and on the
way out, and lets nothing be seen before it is whole. It refuses to interpret training or serving:
it knows which tensors a version must hold, and neither what they compute nor who asks for them.
"""
