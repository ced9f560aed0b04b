"""Answers of the processor and its counters."""

from __future__ import annotations

from smile import resources as r
from smile.codec.tables import ORIGINS, duration_to_pb
from smile.v1 import processor_pb2


def prediction_to_pb(prediction: r.Prediction) -> processor_pb2.Prediction:
    message = processor_pb2.Prediction(
        truncated=prediction.truncated, token_count=prediction.token_count
    )
    match prediction.result:
        case r.Classification(label, score, scores):
            message.classification.label = label
            message.classification.score = score
            for row in scores:
                message.classification.scores.add(label=row.label, score=row.score)
        case r.TokenClassification(tokens):
            message.tokens.SetInParent()
            for t in tokens:
                message.tokens.tokens.add(
                    word=t.word, start=t.start, end=t.end, label=t.label, score=t.score
                )
        case r.Embedding(values):
            message.embedding.values.extend(values)
    return message


def prediction_from_pb(message: processor_pb2.Prediction) -> r.Prediction:
    result: r.Classification | r.TokenClassification | r.Embedding
    match message.WhichOneof("result"):
        case "classification":
            found = message.classification
            scores = tuple(r.LabelScore(row.label, row.score) for row in found.scores)
            result = r.Classification(found.label, found.score, scores)
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
    timings = result.timings
    return processor_pb2.InferResponse(
        predictions=[prediction_to_pb(p) for p in result.predictions],
        version=result.version,
        digest=result.digest,
        origin=ORIGINS.to_pb(result.origin),
        timings=processor_pb2.Timings(
            queue=duration_to_pb(timings.queue_s),
            load=duration_to_pb(timings.load_s),
            compute=duration_to_pb(timings.compute_s),
            total=duration_to_pb(timings.total_s),
            batch_texts=timings.batch_texts,
            batch_vplms=timings.batch_vplms,
        ),
    )


def infer_from_pb(message: processor_pb2.InferResponse) -> r.InferResult:
    timings = message.timings
    return r.InferResult(
        predictions=tuple(prediction_from_pb(p) for p in message.predictions),
        version=message.version,
        digest=message.digest,
        origin=ORIGINS.from_pb(message.origin),
        timings=r.Timings(
            queue_s=timings.queue.ToTimedelta().total_seconds(),
            load_s=timings.load.ToTimedelta().total_seconds(),
            compute_s=timings.compute.ToTimedelta().total_seconds(),
            total_s=timings.total.ToTimedelta().total_seconds(),
            batch_texts=timings.batch_texts,
            batch_vplms=timings.batch_vplms,
        ),
    )


_STATS_FIELDS = tuple(r.ProcessorStats.__dataclass_fields__)


def stats_to_pb(stats: r.ProcessorStats) -> processor_pb2.ProcessorStats:
    return processor_pb2.ProcessorStats(**{name: getattr(stats, name) for name in _STATS_FIELDS})


def stats_from_pb(message: processor_pb2.ProcessorStats) -> r.ProcessorStats:
    values = {name: getattr(message, name) for name in _STATS_FIELDS}
    return r.ProcessorStats(**{**values, "backbones": tuple(message.backbones)})
