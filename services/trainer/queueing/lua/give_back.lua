-- Puts a held job back to its old place in the backlog, under its fence.
-- ARGV: job, fence, consumer, event, events_max. Reply: 1, or 0 if the lease is lost.
local job, fence, consumer = ARGV[1], ARGV[2], ARGV[3]
if not holds(job, fence, consumer) then return 0 end
end_lease(redis.call('HGET', job_key(job), 'entry'), job)
redis.call('HSET', job_key(job), 'state', 'queued')
redis.call('HDEL', job_key(job), 'entry', 'consumer', 'held_at', 'progress')
emit(job, ARGV[4], ARGV[5])
wait_in_backlog(job)
return 1
