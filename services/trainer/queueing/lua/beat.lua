-- Renews a lease under its fence, and records progress and events on the way.
-- ARGV: job, fence, consumer, progress, events_max, event... Reply: cancel flag, or -1 if the lease is lost.
local job, fence, consumer, progress, events_max = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not holds(job, fence, consumer) then return -1 end
local entry = redis.call('HGET', job_key(job), 'entry')
redis.call('ZADD', SEEN, tick(), consumer)
redis.call('XCLAIM', LEASED, WORKERS, consumer, 0, entry, 'JUSTID')
if progress ~= '' then redis.call('HSET', job_key(job), 'progress', progress) end
for index = 6, #ARGV do emit(job, ARGV[index], events_max) end
return tonumber(redis.call('HGET', job_key(job), 'cancel'))
