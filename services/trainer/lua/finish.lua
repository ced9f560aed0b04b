-- Ends a job under its fence. A repetition by the same holder succeeds again.
-- ARGV: job, fence, state, event, events_max, keep_s, reason it is dead or ''. Reply: 1, or 0 if the lease is lost.
local job, fence, state = ARGV[1], ARGV[2], ARGV[3]
local key = job_key(job)
if not holds(job, fence) then
  local found = redis.call('HMGET', key, 'state', 'fence')
  return (found[1] == state and found[2] == fence) and 1 or 0
end
end_lease(redis.call('HGET', key, 'entry'))
redis.call('HSET', key, 'state', state)
redis.call('HDEL', key, 'entry', 'consumer')
emit(job, ARGV[4], ARGV[5])
redis.call('EXPIRE', key, ARGV[6])
redis.call('EXPIRE', events_key(job), ARGV[6])
if ARGV[7] ~= '' then
  redis.call('XADD', DEAD, 'MAXLEN', '~', DEAD_MAX, '*', 'job', job, 'reason', ARGV[7])
end
return 1
