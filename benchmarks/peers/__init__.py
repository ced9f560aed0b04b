"""SMILE beside what people can use instead, each in an environment of its own."""
