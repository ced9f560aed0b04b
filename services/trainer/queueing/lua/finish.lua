-- Ends a job under its fence. A repetition by the same holder succeeds again.
-- ARGV: job, fence, consumer, state, event, events_max, keep_s, reason it is dead or ''.
-- Reply: 1, or 0 if the lease is lost.
local job, fence, consumer, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = job_key(job)
if not holds(job, fence, consumer) then
  local found = redis.call('HMGET', key, 'state', 'fence')
  return (found[1] == state and found[2] == fence) and 1 or 0
end
end_lease(redis.call('HGET', key, 'entry'), job)
if state == 'succeeded' then
  local took = (now_ms() - tonumber(redis.call('HGET', key, 'held_at'))) / 1000
  local pace = tonumber(redis.call('GET', PACE) or took)
  redis.call('SET', PACE, pace + PACE_SHARE * (took - pace))
end
if backlog(tenant_of(job)) > 0 then wake() end -- one that its cap held back
redis.call('HSET', key, 'state', state)
redis.call('HDEL', key, 'entry', 'consumer', 'held_at')
emit(job, ARGV[5], ARGV[6])
redis.call('EXPIRE', key, ARGV[7])
redis.call('EXPIRE', events_key(job), ARGV[7])
if ARGV[8] ~= '' then
  redis.call('XADD', DEAD, 'MAXLEN', '~', DEAD_MAX, '*', 'job', job, 'reason', ARGV[8])
end
return 1
