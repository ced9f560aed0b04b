-- Where jobs are. ARGV: job... Reply per job: {state, attempt, progress, jobs ahead}, '' where unset.
-- Tenants take turns: before the job with `rank` others of its tenant ahead, every tenant is served `rank` times, and
-- those whose turn comes first once more.
local tenants
local function ahead_of(job)
  local tenant = tenant_of(job)
  local rank = redis.call('ZRANK', backlog_key(tenant), job)
  if not rank then return 0 end
  tenants = tenants or redis.call('LRANGE', TURNS, 0, -1)
  local ahead, first = 0, 1
  for _, other in ipairs(tenants) do
    if other == tenant then
      ahead, first = ahead + rank, 0
    else
      ahead = ahead + math.min(redis.call('ZCARD', backlog_key(other)), rank + first)
    end
  end
  return ahead
end

local replies = {}
for index, job in ipairs(ARGV) do
  local found = redis.call('HMGET', job_key(job), 'state', 'attempt', 'progress')
  replies[index] = {found[1] or '', found[2] or '0', found[3] or '', found[1] == 'queued' and ahead_of(job) or 0}
end
return replies
