-- What every script of the queue shares. KEYS[1] is the prefix, whose hash tag keeps all keys in one slot.
--
--   job:{tenant}/{job}      hash: state, fence, attempt, deaths, cancel, when, order, progress; entry, consumer and
--                           held_at while held
--   now:{tenant}            zset: jobs that wait, by priority and arrival
--   off_peak:{tenant}       zset: the same of jobs that wait for a window
--   waiting                 zset: tenants with a job that waits, by what they have paid for turns (turns.py)
--   joined                  hash: when each of them began to wait
--   rested                  zset: tenants that have no job any more, but paid ahead of the others
--   level                   string: what the tenant served last had paid
--   running:{tenant}        set: its jobs that workers hold
--   leased                  stream: one entry per job that a worker holds; its pending list keeps the leases
--   events:{tenant}/{job}   stream: what watchers see
--   reserved:{tenant}       zset: places in the backlog promised to requests, by the time they lapse
--   dead                    stream: jobs given up after too many deaths
--   wake                    list: one element per job that may be claimed, for idle workers to wait on
--   seen                    zset: workers, by when they were heard of
--   pace                    string: seconds that a job takes, a moving mean
--   clock                   string: the time when a worker was last heard of, to see that the server's clock was set back
local prefix = KEYS[1]
local LEASED, WORKERS = prefix .. 'leased', 'workers'
local WAITING, JOINED, RESTED, LEVEL = prefix .. 'waiting', prefix .. 'joined', prefix .. 'rested', prefix .. 'level'
local DEAD, WAKE, SEEN, PACE = prefix .. 'dead', prefix .. 'wake', prefix .. 'seen', prefix .. 'pace'
local CLOCK = prefix .. 'clock'
local WAKE_MAX, DEAD_MAX, PACE_SHARE = 64, 10000, 0.2
local PENDING_MAX, SET_BACK_MS = 100000, 1000

local function job_key(job) return prefix .. 'job:' .. job end
local function events_key(job) return prefix .. 'events:' .. job end
local function tenant_of(job) return string.match(job, '^([^/]+)/') end
local function backlog_key(tenant, when) return prefix .. when .. ':' .. tenant end
local function running_key(tenant) return prefix .. 'running:' .. tenant end
local function backlog(tenant)
  return redis.call('ZCARD', backlog_key(tenant, 'now')) + redis.call('ZCARD', backlog_key(tenant, 'off_peak'))
end
local function reserved_key(tenant) return prefix .. 'reserved:' .. tenant end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The time, as often as a worker is heard of. A lease ends by this server's wall clock: where that was set back, leases
-- of before would last until it has caught up, also those of dead workers. So all of them begin anew.
local function tick()
  local now = now_ms()
  if now + SET_BACK_MS < tonumber(redis.call('GET', CLOCK) or '0') then
    for _, pending in ipairs(redis.call('XPENDING', LEASED, WORKERS, '-', '+', PENDING_MAX)) do
      redis.call('XCLAIM', LEASED, WORKERS, pending[2], 0, pending[1], 'JUSTID')
    end
  end
  redis.call('SET', CLOCK, now)
  return now
end

local function emit(job, body, events_max)
  if body ~= '' then
    redis.call('XADD', events_key(job), 'MAXLEN', '~', events_max, '*', 'body', body)
  end
end

local function wake()
  redis.call('LPUSH', WAKE, '1')
  redis.call('LTRIM', WAKE, 0, WAKE_MAX - 1)
end

local function level() return tonumber(redis.call('GET', LEVEL) or '0') end

-- A tenant is in `waiting` exactly while a job of it waits. It starts from where the others are.
local function wait_in_backlog(job)
  local tenant, found = tenant_of(job), redis.call('HMGET', job_key(job), 'when', 'order')
  if not redis.call('ZSCORE', WAITING, tenant) then
    local paid = math.max(level(), tonumber(redis.call('ZSCORE', RESTED, tenant) or '0'))
    redis.call('ZREM', RESTED, tenant)
    redis.call('ZADD', WAITING, paid, tenant)
    redis.call('HSET', JOINED, tenant, redis.call('INCR', prefix .. 'order'))
  end
  redis.call('ZADD', backlog_key(tenant, found[1]), found[2], job)
  wake()
end

local function leave_backlog(job)
  local tenant = tenant_of(job)
  if redis.call('ZREM', backlog_key(tenant, redis.call('HGET', job_key(job), 'when')), job) == 0 then return false end
  if backlog(tenant) == 0 then
    local paid = tonumber(redis.call('ZSCORE', WAITING, tenant))
    redis.call('ZREM', WAITING, tenant)
    redis.call('HDEL', JOINED, tenant)
    if paid > level() then redis.call('ZADD', RESTED, paid, tenant) end
  end
  return true
end

local function ensure_group()
  redis.pcall('XGROUP', 'CREATE', LEASED, WORKERS, '0', 'MKSTREAM')
end

local function end_lease(entry, job)
  if job then redis.call('SREM', running_key(tenant_of(job)), job) end
  redis.call('XACK', LEASED, WORKERS, entry)
  redis.call('XDEL', LEASED, entry)
end

-- Gives `consumer` the job under a higher fence.
local function hold(job, entry, consumer)
  local key = job_key(job)
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'state', 'running', 'entry', entry, 'consumer', consumer, 'held_at', now_ms())
  redis.call('SADD', running_key(tenant_of(job)), job)
  local rest = redis.call('HMGET', key, 'cancel', 'deaths', 'when')
  return {job, fence, attempt, tonumber(rest[1]), tonumber(rest[2]), rest[3]}
end

-- Moves a job that left the backlog into the stream and holds it. The stream has no undelivered entries,
-- so the read below gives back the entry just added.
local function lease(job, consumer)
  local entry = redis.call('XADD', LEASED, '*', 'job', job)
  redis.call('XREADGROUP', 'GROUP', WORKERS, consumer, 'COUNT', 1, 'STREAMS', LEASED, '>')
  return hold(job, entry, consumer)
end

-- Whether `consumer` still holds the job under `fence`. The name matters too: a server that restarts from an older
-- state of its data may give out a fence once more.
local function holds(job, fence, consumer)
  local found = redis.call('HMGET', job_key(job), 'state', 'fence', 'consumer')
  return found[1] == 'running' and found[2] == fence and found[3] == consumer
end
