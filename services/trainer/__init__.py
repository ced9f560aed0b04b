"""Trainer: owns the queue of training jobs and the workers that run them.

It accepts jobs (durable in storage before they are acknowledged), hands them out by lease under a
growing fence, trains PET module and head over the frozen backbone, publishes one immutable version
per job and moves the alias that was asked for. It refuses to talk to the processor, to keep
anything that matters (records, curves and versions live in storage; Redis may be wiped), and to
train on rows it could not read without a fault.
"""
