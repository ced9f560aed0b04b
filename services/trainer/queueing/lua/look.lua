-- Where jobs are. ARGV: job... Reply per job: {state, attempt, progress, when, others of its tenant and kind before it,
-- others of the other kind before it}, '' where unset.
local replies = {}
for index, job in ipairs(ARGV) do
  local tenant, found = tenant_of(job), redis.call('HMGET', job_key(job), 'state', 'attempt', 'progress', 'when', 'order')
  local before, others = 0, 0
  if found[1] == 'queued' then
    before = redis.call('ZRANK', backlog_key(tenant, found[4]), job) or 0
    others = redis.call('ZCOUNT', backlog_key(tenant, found[4] == 'now' and 'off_peak' or 'now'), '-inf', '(' .. found[5])
  end
  replies[index] = {found[1] or '', found[2] or '0', found[3] or '', found[4] or 'now', before, others}
end
return replies
