# The sources of the library. Files of one instruction set are compiled with its flags, everything else for the
# lowest CPU. Paths are relative to this folder.
set(KLB_SOURCES
  core/cpu_features.cc
  core/packing.cc
  core/shapes.cc
  cuda/plan.cc
  kernels/isa.cc
  kernels/depthwise/depthwise.cc
  kernels/depthwise/reference.cc
  kernels/int8_block/int8_block.cc
  kernels/int8_block/reference.cc
  kernels/ternary_block/reference.cc
  kernels/ternary_block/ternary_block.cc
  kernels/tile_block/reference_amx.cc
  kernels/tile_block/tile_block.cc
  layers/constants.cc
  layers/conv2d.cc
  layers/conv2d_plan.cc
  layers/conv2d_tiles.cc
  layers/depthwise.cc
  layers/epilogue.cc
  layers/fp32_requantize.cc
  layers/fp32_residual.cc
  layers/indirection.cc
  layers/layer_cache.cc
  layers/max_pool.cc
  layers/padded_image.cc
  layers/tile_image.cc)

# Of the CUDA compiler. No contraction there either.
set(KLB_CUDA_FLAGS --expt-relaxed-constexpr -fmad=false)

set(KLB_X86_ISAS avx2 avxvnni avx512vnni amx)
set(KLB_FLAGS_avx2 -mavx2 -mfma)
set(KLB_FLAGS_avxvnni -mavx2 -mfma -mavxvnni)
# GCC 12 reports uninitialised values inside its own AVX512 headers.
set(KLB_FLAGS_avx512vnni -falign-loops=64 -mavx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -Wno-maybe-uninitialized
    -Wno-uninitialized)
set(KLB_FLAGS_amx -falign-loops=64 -mavx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mamx-tile -mamx-int8
    -Wno-maybe-uninitialized -Wno-uninitialized)
set(KLB_ARM_ISAS neon dotprod i8mm)
set(KLB_FLAGS_neon "")
set(KLB_FLAGS_dotprod -march=armv8.2-a+dotprod)
set(KLB_FLAGS_i8mm -march=armv8.2-a+dotprod+i8mm)

# Adds each family's file of each ISA target of this architecture, with its flags.
macro(klb_add_isas prefix isas)
  foreach(isa IN LISTS ${isas})
    foreach(family IN ITEMS depthwise int8_block ternary_block tile_block)
      set(file kernels/${family}/${prefix}_${isa}.cc)
      if(EXISTS ${CMAKE_CURRENT_LIST_DIR}/${file})
        list(APPEND KLB_SOURCES ${file})
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${KLB_FLAGS_${isa}}")
      endif()
    endforeach()
  endforeach()
endmacro()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  klb_add_isas(x86 KLB_X86_ISAS)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  klb_add_isas(arm KLB_ARM_ISAS)
endif()
