-- What every script of the queue shares. KEYS[1] is the prefix, whose hash tag keeps all keys in one slot.
--
--   job:{tenant}/{job}      hash: state, fence, attempt, deaths, cancel, order, progress; entry and consumer while held
--   backlog:{tenant}        zset: jobs that wait, by order of arrival
--   turns                   list: tenants with a backlog; the next to be served is at the head
--   leased                  stream: one entry per job that a worker holds; its pending list keeps the leases
--   events:{tenant}/{job}   stream: what watchers see
--   reserved:{tenant}       zset: places in the backlog promised to requests, by the time they lapse
--   dead                    stream: jobs given up after too many deaths
--   wake                    list: one element per job that may be claimed, for idle workers to wait on
local prefix = KEYS[1]
local LEASED, WORKERS = prefix .. 'leased', 'workers'
local TURNS, DEAD, WAKE = prefix .. 'turns', prefix .. 'dead', prefix .. 'wake'
local WAKE_MAX, DEAD_MAX = 64, 10000

local function job_key(job) return prefix .. 'job:' .. job end
local function events_key(job) return prefix .. 'events:' .. job end
local function tenant_of(job) return string.match(job, '^([^/]+)/') end
local function backlog_key(tenant) return prefix .. 'backlog:' .. tenant end
local function reserved_key(tenant) return prefix .. 'reserved:' .. tenant end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
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

-- A tenant is in `turns` exactly while its backlog holds a job.
local function wait_in_backlog(job, order)
  local tenant = tenant_of(job)
  if redis.call('ZCARD', backlog_key(tenant)) == 0 then redis.call('RPUSH', TURNS, tenant) end
  redis.call('ZADD', backlog_key(tenant), order, job)
  wake()
end

local function leave_backlog(job)
  local tenant = tenant_of(job)
  if redis.call('ZREM', backlog_key(tenant), job) == 0 then return false end
  if redis.call('ZCARD', backlog_key(tenant)) == 0 then redis.call('LREM', TURNS, 0, tenant) end
  return true
end

-- The oldest job of the tenant whose turn it is, or nil.
local function next_in_turn()
  local tenant = redis.call('LPOP', TURNS)
  if not tenant then return nil end
  local job = redis.call('ZPOPMIN', backlog_key(tenant))[1]
  if redis.call('ZCARD', backlog_key(tenant)) > 0 then redis.call('RPUSH', TURNS, tenant) end
  return job
end

local function ensure_group()
  redis.pcall('XGROUP', 'CREATE', LEASED, WORKERS, '0', 'MKSTREAM')
end

local function end_lease(entry)
  redis.call('XACK', LEASED, WORKERS, entry)
  redis.call('XDEL', LEASED, entry)
end

-- Gives `consumer` the job under a higher fence.
local function hold(job, entry, consumer)
  local key = job_key(job)
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'state', 'running', 'entry', entry, 'consumer', consumer)
  local rest = redis.call('HMGET', key, 'cancel', 'deaths')
  return {job, fence, attempt, tonumber(rest[1]), tonumber(rest[2])}
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
