"""Answers of the processor and its counters."""

from __future__ import annotations

from smile import resources as r
from smile.codec.tables import EXACTNESSES, ORIGINS, duration_from_pb, fill_duration
from smile.errors import SmileError
from smile.rpc.status import from_status, to_status
from smile.v1 import processor_pb2


def prediction_to_pb(prediction: r.Prediction) -> processor_pb2.Prediction:
    message = processor_pb2.Prediction()
    _fill_prediction(message, prediction)
    return message


def _fill_prediction(message: processor_pb2.Prediction, prediction: r.Prediction) -> None:
    """In place, which costs half of building the parts one by one."""
    message.truncated = prediction.truncated
    message.token_count = prediction.token_count
    match prediction.result:
        case r.Classification(label, score, scores):
            found = message.classification
            found.label, found.score = label, score
            add = found.scores.add
            for row in scores:
                add(label=row.label, score=row.score)
        case r.TokenClassification(tokens):
            message.tokens.SetInParent()
            add_token = message.tokens.tokens.add
            for t in tokens:
                add_token(word=t.word, start=t.start, end=t.end, label=t.label, score=t.score)
        case r.Embedding(values):
            message.embedding.SetInParent()
            message.embedding.values.extend(values)


def prediction_from_pb(message: processor_pb2.Prediction) -> r.Prediction:
    result: r.Classification | r.TokenClassification | r.Embedding
    match message.WhichOneof("result"):
        case "classification":
            found = message.classification
            scores = [r.LabelScore(row.label, row.score) for row in found.scores]
            result = r.Classification(found.label, found.score, tuple(scores))
        case "tokens":
            result = r.TokenClassification(
                tuple(
                    r.TokenLabel(t.word, t.start, t.end, t.label, t.score)
                    for t in message.tokens.tokens
                )
            )
        case _:
            result = r.Embedding(tuple(message.embedding.values))
    return r.Prediction(result, message.truncated, message.token_count)


def infer_to_pb(result: r.InferResult) -> processor_pb2.InferResponse:
    message = processor_pb2.InferResponse(
        version=result.version,
        digest=result.digest,
        origin=ORIGINS.to_pb(result.origin),
        exactness=EXACTNESSES.to_pb(result.exactness),
        materialization=_materialization_to_pb(result.materialization),
    )
    add = message.predictions.add
    for prediction in result.predictions:
        _fill_prediction(add(), prediction)
    _fill_timings(message.timings, result.timings)
    return message


def infer_from_pb(message: processor_pb2.InferResponse) -> r.InferResult:
    return r.InferResult(
        predictions=tuple([prediction_from_pb(p) for p in message.predictions]),
        version=message.version,
        digest=message.digest,
        origin=ORIGINS.from_pb(message.origin),
        timings=_timings_from_pb(message.timings),
        materialization=_materialization_from_pb(message),
    )


def _materialization_to_pb(
    found: r.Materialization | None,
) -> processor_pb2.Materialization | None:
    if found is None:
        return None
    return processor_pb2.Materialization(
        encoder_digest=found.encoder_digest,
        ngrams=found.ngrams,
        found=found.found,
        domain=found.domain,
        domain_digest=found.domain_digest,
    )


def _materialization_from_pb(
    message: processor_pb2.InferResponse | processor_pb2.FanoutAnswer,
) -> r.Materialization | None:
    if not message.HasField("materialization"):
        return None
    found = message.materialization
    return r.Materialization(
        found.encoder_digest, found.ngrams, found.found, found.domain, found.domain_digest
    )


def _fill_timings(message: processor_pb2.Timings, timings: r.Timings) -> None:
    fill_duration(message.queue, timings.queue_s)
    fill_duration(message.load, timings.load_s)
    fill_duration(message.compute, timings.compute_s)
    fill_duration(message.total, timings.total_s)
    message.batch_texts = timings.batch_texts
    message.batch_vplms = timings.batch_vplms


def _timings_from_pb(timings: processor_pb2.Timings) -> r.Timings:
    return r.Timings(
        queue_s=duration_from_pb(timings.queue),
        load_s=duration_from_pb(timings.load),
        compute_s=duration_from_pb(timings.compute),
        total_s=duration_from_pb(timings.total),
        batch_texts=timings.batch_texts,
        batch_vplms=timings.batch_vplms,
    )


def fanout_to_pb(result: r.FanoutResult) -> processor_pb2.InferFanoutResponse:
    message = processor_pb2.InferFanoutResponse(
        entries=[_entry_to_pb(entry) for entry in result.entries]
    )
    _fill_timings(message.timings, result.timings)
    return message


def fanout_from_pb(message: processor_pb2.InferFanoutResponse) -> r.FanoutResult:
    return r.FanoutResult(
        tuple(_entry_from_pb(entry) for entry in message.entries),
        _timings_from_pb(message.timings),
    )


def _entry_to_pb(entry: r.FanoutAnswer | SmileError) -> processor_pb2.FanoutEntry:
    if isinstance(entry, SmileError):
        return processor_pb2.FanoutEntry(error=to_status(entry))
    return processor_pb2.FanoutEntry(
        answer=processor_pb2.FanoutAnswer(
            prediction=prediction_to_pb(entry.prediction),
            version=entry.version,
            digest=entry.digest,
            origin=ORIGINS.to_pb(entry.origin),
            exactness=EXACTNESSES.to_pb(entry.exactness),
            materialization=_materialization_to_pb(entry.materialization),
        )
    )


def _entry_from_pb(message: processor_pb2.FanoutEntry) -> r.FanoutAnswer | SmileError:
    if message.HasField("error"):
        return from_status(message.error)
    answer = message.answer
    return r.FanoutAnswer(
        prediction_from_pb(answer.prediction),
        answer.version,
        answer.digest,
        ORIGINS.from_pb(answer.origin),
        _materialization_from_pb(answer),
    )


_NESTED = ("requests_by_outcome", "batches_by_close", "latencies")
_STATS_FIELDS = tuple(name for name in r.ProcessorStats.__dataclass_fields__ if name not in _NESTED)


def stats_to_pb(stats: r.ProcessorStats) -> processor_pb2.ProcessorStats:
    latencies = [
        processor_pb2.ClassLatency(
            tenant_class=each.tenant_class,
            requests=each.requests,
            p50_seconds=each.p50_seconds,
            p99_seconds=each.p99_seconds,
        )
        for each in stats.latencies
    ]
    return processor_pb2.ProcessorStats(
        **{name: getattr(stats, name) for name in _STATS_FIELDS},
        requests_by_outcome=dict(stats.requests_by_outcome),
        batches_by_close=dict(stats.batches_by_close),
        latencies=latencies,
    )


def stats_from_pb(message: processor_pb2.ProcessorStats) -> r.ProcessorStats:
    values = {name: getattr(message, name) for name in _STATS_FIELDS}
    return r.ProcessorStats(
        **{**values, "backbones": tuple(message.backbones)},
        requests_by_outcome=dict(message.requests_by_outcome),
        batches_by_close=dict(message.batches_by_close),
        latencies=tuple(
            r.ClassLatency(each.tenant_class, each.requests, each.p50_seconds, each.p99_seconds)
            for each in message.latencies
        ),
    )
