-- Puts a held job back to its old place in the backlog, under its fence.
-- ARGV: job, fence, event, events_max. Reply: 1, or 0 if the lease is lost.
local job, fence = ARGV[1], ARGV[2]
if not holds(job, fence) then return 0 end
local found = redis.call('HMGET', job_key(job), 'entry', 'order')
end_lease(found[1])
redis.call('HSET', job_key(job), 'state', 'queued')
redis.call('HDEL', job_key(job), 'entry', 'consumer', 'progress')
emit(job, ARGV[3], ARGV[4])
wait_in_backlog(job, found[2])
return 1
