-- Ends a stream whose writer is dead. The first close wins: a stream that has ended is left as it is.
-- KEYS  meta, events.    ARGV  the terminal entry, ms to keep, Idempotency-Key and its claim to free, or ''.
local was = redis.call('HMGET', KEYS[1], 'state', 'next')
local running = {open = 'lost', alone = 'abandoned', live = 'abandoned'}
local state = running[was[1]]
if not state then return 0 end
local behind = tonumber(was[2]) + 1
redis.call('XADD', KEYS[2], behind .. '-0', 'e', ARGV[1])
redis.call('HSET', KEYS[1], 'next', behind, 'state', state)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if ARGV[4] ~= '' and redis.call('GET', ARGV[3]) == ARGV[4] then redis.call('DEL', ARGV[3]) end
return 1
