-- Asks a job to stop. One that waits is given to the asker, who ends it; if the asker dies, its lease runs out and a
-- worker ends it. ARGV: job, consumer. Reply: {state before} or {'queued', job, fence, attempt, cancel, deaths, when}.
local job = ARGV[1]
local state = redis.call('HGET', job_key(job), 'state')
if not state then return {'unknown'} end
if state == 'running' then redis.call('HSET', job_key(job), 'cancel', 1) end
if state ~= 'queued' then return {state} end
redis.call('HSET', job_key(job), 'cancel', 1)
leave_backlog(job)
ensure_group()
return {'queued', unpack(lease(job, ARGV[2]))}
