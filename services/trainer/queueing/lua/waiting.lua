-- All tenants that wait, and how fast jobs are done. ARGV: how long ago a worker was heard of at most, in ms.
-- Reply: {level, seconds of a job, workers, held jobs, {tenant, paid, joined, running, first job and count of those for
-- now, the same of those for off-peak, whether the latter's goes first}...}.
redis.call('ZREMRANGEBYSCORE', SEEN, '-inf', now_ms() - tonumber(ARGV[1]))
local reply = {
  redis.call('GET', LEVEL) or '0', redis.call('GET', PACE) or '0', redis.call('ZCARD', SEEN), redis.call('XLEN', LEASED),
}
for _, tenant in ipairs(redis.call('ZRANGE', WAITING, 0, -1)) do
  local now, off_peak = backlog_key(tenant, 'now'), backlog_key(tenant, 'off_peak')
  local first, second = redis.call('ZRANGE', now, 0, 0), redis.call('ZRANGE', off_peak, 0, 0)
  local earlier = 0
  if first[1] and second[1] then
    local scores = {redis.call('ZSCORE', now, first[1]), redis.call('ZSCORE', off_peak, second[1])}
    earlier = tonumber(scores[2]) < tonumber(scores[1]) and 1 or 0
  end
  reply[#reply + 1] = {
    tenant, redis.call('ZSCORE', WAITING, tenant), redis.call('HGET', JOINED, tenant) or '0',
    redis.call('SCARD', running_key(tenant)), first[1] or '', redis.call('ZCARD', now), second[1] or '',
    redis.call('ZCARD', off_peak), earlier,
  }
end
return reply
