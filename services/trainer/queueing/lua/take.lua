-- Gives a consumer a job that waits, and makes its tenant pay for the turn.
-- ARGV: consumer, job, running_max, stride. Reply: {job, fence, attempt, cancel, deaths, when}, or nil if it is gone.
local consumer, job, running_max, stride = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local tenant = tenant_of(job)
if redis.call('HGET', job_key(job), 'state') ~= 'queued' then return nil end
if redis.call('SCARD', running_key(tenant)) >= running_max then return nil end
local paid = math.max(tonumber(redis.call('ZSCORE', WAITING, tenant) or '0'), level())
redis.call('SET', LEVEL, string.format('%.0f', paid))
redis.call('ZADD', WAITING, paid + stride, tenant)
redis.call('ZREMRANGEBYSCORE', RESTED, '-inf', paid)
if not leave_backlog(job) then return nil end
ensure_group()
return lease(job, consumer)
