-- Gives a consumer one job: one it holds without knowing (the reply was lost), else one whose lease ran out.
-- ARGV: consumer, lease_ms. Reply: {job, fence, attempt, cancel, deaths, when} or nil.
local consumer, lease_ms = ARGV[1], ARGV[2]
ensure_group()
redis.call('ZADD', SEEN, tick(), consumer)

local function job_of(entry)
  local found = redis.call('XRANGE', LEASED, entry, entry)[1]
  local job = found and found[2][2]
  if job and redis.call('HGET', job_key(job), 'entry') == entry then return job end
  end_lease(entry, nil) -- the job ended or is held under another entry
  return nil
end

for _, pending in ipairs(redis.call('XPENDING', LEASED, WORKERS, '-', '+', 16, consumer)) do
  local job = job_of(pending[1])
  if job then return hold(job, pending[1], consumer) end
end

local cursor = '0-0'
repeat
  local reply = redis.call('XAUTOCLAIM', LEASED, WORKERS, consumer, lease_ms, cursor, 'COUNT', 1, 'JUSTID')
  cursor = reply[1]
  for _, entry in ipairs(reply[2]) do
    local job = job_of(entry)
    if job then
      redis.call('HINCRBY', job_key(job), 'deaths', 1)
      return hold(job, entry, consumer)
    end
  end
until cursor == '0-0'
return nil
