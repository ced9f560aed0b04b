-- Promises a place in the tenant's backlog for `ttl_ms`, or refuses when all are taken.
-- ARGV: job, places_max, ttl_ms. Reply: {granted, places taken}.
local job, places_max, ttl_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local tenant = tenant_of(job)
if redis.call('EXISTS', job_key(job)) == 1 then return {1, 0} end
redis.call('ZREMRANGEBYSCORE', reserved_key(tenant), '-inf', now_ms())
local taken = backlog(tenant) + redis.call('ZCARD', reserved_key(tenant))
if redis.call('ZSCORE', reserved_key(tenant), job) then return {1, taken} end
if taken >= places_max then return {0, taken} end
redis.call('ZADD', reserved_key(tenant), now_ms() + ttl_ms, job)
redis.call('PEXPIRE', reserved_key(tenant), ttl_ms)
return {1, taken + 1}
