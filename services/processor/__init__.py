"""The processor: one device that thousands of vPLMs share.

It owns the device: backbones, modules in host memory, the queue, the batch. It answers texts with
vPLMs and tells which immutable version answered. It keeps nothing that matters: whatever is lost
here is fetched again from storage. It never trains, never talks to the trainer, and never decides
what a tenant may store.

One request: `servicer` decodes it into an `InferenceRequest` (`requests`), `pipeline` admits it or
refuses at once (`admission`), finds which version is asked for (`resolver`), tokenises and queues
it; `dispatch` holds queue and modules under one lock; the device thread (`device`) takes what
`scheduler` picks, `engine` computes it, and `answers` turns outputs into predictions.

Modules that are not in memory (`residency`) come through `loader`, once however many requests wait
(`demand`). Memory is two tiers of rows (`tiers`), host and device, each a budget of slots (`space`)
with memory behind them (`arena`); `policy` says who leaves first.
"""
