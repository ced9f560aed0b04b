"""Accounts of tenants: what reporters count, added up by day, against what each may use.

A reporter (a processor, a worker of the trainer) counts in its memory and now and then sends what
it has counted of a day so far. Its counts only grow, so the larger of two reports is the later one,
and a report that is repeated or overtaken changes nothing: a grow-only counter with one place for
each reporter (Shapiro, Preguiça, Baquero and Zawirski 2011, "A comprehensive study of convergent
and commutative replicated data types", §3.1.1). A process that starts anew is a new reporter. What
a process had counted and not yet reported when it died is lost: an interval at most.
"""
