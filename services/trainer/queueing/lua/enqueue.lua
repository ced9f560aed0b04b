-- Puts a job that is durable into its tenant's backlog, once.
-- ARGV: job, fence and attempt of the record, event, events_max, when, priority. Reply: 1 if it was new.
local PRIORITY_ORDERS = 1e12 -- more jobs than ever come: priority goes first
local job = ARGV[1]
redis.call('ZREM', reserved_key(tenant_of(job)), job)
if redis.call('EXISTS', job_key(job)) == 1 then return 0 end
local order = redis.call('INCR', prefix .. 'order') - tonumber(ARGV[7]) * PRIORITY_ORDERS
redis.call('HSET', job_key(job), 'state', 'queued', 'fence', ARGV[2], 'attempt', ARGV[3],
  'deaths', 0, 'cancel', 0, 'when', ARGV[6], 'order', string.format('%.0f', order))
emit(job, ARGV[4], ARGV[5])
wait_in_backlog(job)
return 1
